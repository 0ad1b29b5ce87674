// Widths and bundles that follow from the machine. `npu_machine` is the generated package with the machine's numbers.

package npu_types;
  import npu_machine::*;

  // Element types, as the ISA numbers them.
  localparam logic [3:0] U8 = 4'd0;
  localparam logic [3:0] I8 = 4'd1;
  localparam logic [3:0] I16 = 4'd2;

  // What an accumulator does beyond its width, as the generated package numbers it.
  localparam int SATURATE = 0;
  localparam int WRAP = 1;

  // A 16-bit operand is a signed high byte and an unsigned low byte; a multiplier takes any byte as a signed 9-bit lane.
  // A cell has A_LANES x W_LANES multipliers: as many as the narrowest of the machine's pass lengths needs, and no more.
  localparam int A_LANES = (PASS_CYCLES_A16W8 < 2 || PASS_CYCLES_A16W16 < 4) ? 2 : 1;
  localparam int W_LANES = (PASS_CYCLES_A16W16 < 2) ? 2 : 1;
  localparam int LANE_BITS = 9;
  localparam int ACT_BITS = A_LANES * LANE_BITS;

  // Exact sums over one fold: of a cycle's partial products, of a row's whole products, of a row's activations.
  localparam int PSUM_BITS = 18 + 8 * (A_LANES - 1) + 8 * (W_LANES - 1) + $clog2(ROWS);
  localparam int FOLD_BITS = 32 + $clog2(ROWS);
  localparam int SUM_PSUM_BITS = LANE_BITS + 8 * (A_LANES - 1) + $clog2(ROWS);
  // Exact sum of a whole activation row: at most SRAM_BYTES elements of 8 bits or half as many of 16 bits lie in the SRAM.
  localparam int ROW_SUM_BITS = 16 + $clog2(SRAM_BYTES);

  localparam int PHASE_BITS = $clog2(PASS_CYCLES_A16W16 + 1);
  localparam int BANK_BITS = ACC_ROWS > 1 ? $clog2(ACC_ROWS) : 1;
  localparam int COLUMN_BITS = $clog2(COLS + 1);
  localparam int RECORD_BITS = 96;  // the ISA's requantization record, its bytes in order

  // One MATMUL. Shapes are in elements; batches = batch0 * batch1.
  typedef struct packed {
    logic [31:0] m, k, n, batches;
    logic [3:0] a_type, b_type, out_type;
    logic by_channel, by_row;
    logic signed [31:0] out_zero_point;
  } job_t;

  // Control that enters the array with an activation row and passes from cell to cell with it.
  typedef struct packed {
    logic latch;   // first cycle of a fold: take the shadow weight
    logic load;    // shift the weight chain by one
    logic w_wide;  // the weights have 16 bits
    logic w_high;  // multiply with the weight's high byte
  } stream_t;

  // Control that meets a row's sums below the array and passes from column to column with them.
  typedef struct packed {
    logic valid;
    logic first_phase, last_phase;      // of the cycles that one row takes
    logic first_fold, last_fold;        // of the folds over k
    logic last;                         // very last cycle of the instruction
    logic [1:0] byte_shift;             // weight of this phase's products: 2^(8 * byte_shift)
    logic [BANK_BITS-1:0] bank_row;     // accumulator
    logic [COLUMN_BITS-1:0] columns;    // columns that hold weights in this fold
    logic [31:0] n0;                    // first output channel of the fold
    logic [14:0] row_multiplier;        // of the row's record, in row mode
    logic [5:0] row_shift;
  } token_t;
endpackage
