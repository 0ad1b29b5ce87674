// Widths, bundles and small functions that follow from the machine. `npu_machine` is the generated package with its numbers.

package npu_types;
  import npu_machine::*;

  // Element types, as the ISA numbers them.
  localparam logic [3:0] U8 = 4'd0;
  localparam logic [3:0] I8 = 4'd1;
  localparam logic [3:0] I16 = 4'd2;
  localparam logic [3:0] U4 = 4'd4;
  localparam logic [3:0] I4 = 4'd5;
  localparam logic [3:0] U6 = 4'd6;
  localparam logic [3:0] I6 = 4'd7;
  localparam logic [3:0] U16 = 4'd8;

  // What an accumulator does beyond its width, as the generated package numbers it.
  localparam int SATURATE = 0;
  localparam int WRAP = 1;

  // Two products of 4 x 4 bits in one cell and cycle: values of k that a cell takes at once in that mode.
  localparam bit PAIRS = A4W4_PER_CELL == 2 && NARROWEST_ACTIVATION_BITS == 4 && NARROWEST_WEIGHT_BITS == 4;

  // A 16-bit operand is a signed high byte and an unsigned low byte, so a multiplier takes a weight's byte as a signed 9-bit
  // lane. An activation minus its zero point has 9 or 17 bits: a lane has 9 as well, and 12 with the input shift of up to 3.
  // A cell has A_LANES x W_LANES multipliers: as many as the narrowest of the machine's pass lengths needs, and no more. The
  // second product of a pair has a small one of its own: 5 or 8 bits times a weight of 4.
  localparam int A_LANES = (PASS_CYCLES_A16W8 < 2 || PASS_CYCLES_A16W16 < 4) ? 2 : 1;
  localparam int W_LANES = (PASS_CYCLES_A16W16 < 2) ? 2 : 1;
  localparam int WEIGHT_LANE_BITS = 9;
  localparam int LANE_BITS = INPUT_SHIFT ? 12 : 9;
  localparam int PAIR_BITS = INPUT_SHIFT ? 8 : 5;
  localparam int ACT_BITS = A_LANES * LANE_BITS + (PAIRS ? PAIR_BITS : 0);  // the second of a pair stands on top

  // Exact sums: of one cell's products in a cycle; of a column's in a cycle, of a row's whole products over one fold, of a
  // row's activations in a cycle. Pairs are small and add no bit.
  localparam int CELL_BITS = LANE_BITS + WEIGHT_LANE_BITS + 8 * (A_LANES - 1) + 8 * (W_LANES - 1);
  localparam int PSUM_BITS = CELL_BITS + (OUTPUT_STATIONARY ? 0 : $clog2(ROWS));
  localparam int FOLD_BITS = 32 + (OUTPUT_STATIONARY ? 0 : $clog2(ROWS));
  localparam int LANE_SUM_BITS = LANE_BITS + 8 * (A_LANES - 1);
  localparam int SUM_PSUM_BITS = LANE_SUM_BITS + $clog2(ROWS);
  // Exact sum of a whole activation row: at most half as many elements of 16 bits as there are bytes lie in the SRAM. It
  // bounds a row's length over all MATMULs that continue one another.
  localparam int ROW_SUM_BITS = 16 + $clog2(SRAM_BYTES);
  // What a column hands to its requantizer's side: partial products, or finished sums.
  localparam int COLUMN_IN_BITS = OUTPUT_STATIONARY ? ACC_BITS : PSUM_BITS;

  localparam int TILE_ROWS = OUTPUT_STATIONARY ? ROWS : ACC_ROWS;  // output rows between two changes of the tile
  localparam int PHASE_BITS = $clog2(PASS_CYCLES_A16W16 + 1);
  localparam int BANK_BITS = ACC_ROWS > 1 ? $clog2(ACC_ROWS) : 1;
  localparam int ROW_COUNT_BITS = $clog2(ROWS + 1);
  localparam int COLUMN_BITS = $clog2(COLS + 1);
  localparam int RECORD_BITS = 96;  // the ISA's requantization record, its bytes in order; the factored one has 64

  // Where the requantizer's registers stand: the first at the output, the next ones at these places in turn, all that remain
  // at its input.
  localparam int PRODUCT_DEPTH = REQUANT_LATENCY >= 2 ? 1 : 0;
  localparam int SECOND_DEPTH = FACTORED && REQUANT_LATENCY >= 3 ? 1 : 0;
  localparam int CORRECTED_DEPTH = REQUANT_LATENCY >= (FACTORED ? 4 : 3) ? 1 : 0;
  localparam int FIRST_DEPTH = FACTORED && REQUANT_LATENCY >= 5 ? 1 : 0;
  localparam int SUM_DEPTH = REQUANT_LATENCY - 1 - PRODUCT_DEPTH - SECOND_DEPTH - CORRECTED_DEPTH - FIRST_DEPTH;

  // One MATMUL. Shapes are in elements; batches = batch0 * batch1.
  typedef struct packed {
    logic [31:0] m, k, n, batches;
    logic [3:0] a_type, b_type, out_type;
    logic by_channel, by_row, factored;
    logic acc_continue, acc_hold, shifted;
    logic [3:0] fraction_bits;
    logic signed [31:0] out_zero_point;
  } job_t;

  // How one output is scaled. In the factored modes there is a second scale, and the bias comes after it.
  typedef struct packed {
    logic [MULTIPLIER_BITS-2:0] multiplier;
    logic [5:0] shift;
    logic factored;
    logic [14:0] second_multiplier;
    logic [5:0] second_shift;
    logic signed [31:0] late_bias;
  } scale_t;

  // Whether a cell takes two values of k at once.
  function automatic logic paired(input job_t job);
    return PAIRS && job.a_type == U4 && job.b_type == I4;
  endfunction

  // A weight as it moves through the array, from the bits of one channel beginning at the element: 16 bits signed; of a
  // pair, the first in the low byte and the second above it.
  function automatic logic [15:0] weight_word(input logic [15:0] bits, input job_t job);
    if (NARROWEST_WEIGHT_BITS <= 4 && job.b_type == I4) begin
      return paired(job) ? {4'd0, bits[7:4], {4{bits[3]}}, bits[3:0]} : {{12{bits[3]}}, bits[3:0]};
    end
    if (NARROWEST_WEIGHT_BITS <= 6 && job.b_type == I6) return {{10{bits[5]}}, bits[5:0]};
    return job.b_type == I16 ? bits : {{8{bits[7]}}, bits[7:0]};
  endfunction

  // What accumulators do with a cycle's products.
  typedef struct packed {
    logic valid;
    logic first_phase, last_phase;   // of the cycles that one row takes
    logic first_fold;                // start from 0
    logic [1:0] byte_shift;          // weight of this phase's products: 2^(8 * byte_shift)
    logic [BANK_BITS-1:0] bank_row;  // accumulator
  } acc_t;

  // Weight-stationary: control that enters the array with an activation row and passes from cell to cell with it.
  typedef struct packed {
    logic latch;   // first cycle of a fold: take the shadow weight
    logic load;    // shift the weight chain by one
    logic w_wide;  // the weights have 16 bits
    logic w_high;  // multiply with the weight's high byte
  } stream_t;

  // Output-stationary: the same, with a pair of operands.
  typedef struct packed {
    acc_t acc;
    logic capture;  // the sum is complete: move it to the drain register
    logic w_wide;
    logic w_high;
  } os_stream_t;

  // Output-stationary: what a row's left edge needs besides. Moves down by one row a cycle.
  typedef struct packed {
    os_stream_t stream;
    logic latch;                     // first cycle of a tile: take the row's input zero point
    logic a_high;                    // show the activation's high byte
    logic first, second;             // which elements of a pair take part
    logic [3:0] shift;               // left shift of both
    logic [ROW_COUNT_BITS-1:0] rows; // rows that take part in this tile
  } edge_t;

  // Output-stationary: begins to move a tile's sums out. Moves down by one row in two cycles.
  typedef struct packed {
    logic valid;
    logic [ROW_COUNT_BITS-1:0] rows;
  } drain_t;

  // Control that meets a row's sums below the array and passes from column to column with them.
  typedef struct packed {
    acc_t acc;
    logic finished;                     // these sums are complete and go to the requantizer
    logic last;                         // very last cycle of the instruction
    logic [COLUMN_BITS-1:0] columns;    // columns that take part
    logic [31:0] n0;                    // first output channel of the tile
    logic [14:0] row_multiplier;        // of the row's record, or the second scale in the factored modes
    logic [5:0] row_shift;
  } token_t;
endpackage
