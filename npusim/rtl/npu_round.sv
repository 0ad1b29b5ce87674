// Rounds a product and shifts it right, ties upwards; saturates to 32 bits.

module npu_round
  import npu_machine::*;
  import npu_types::*;
#(
    parameter bit DOUBLE = DOUBLE_ROUNDING
) (
    input  logic signed [63:0] product,
    input  logic        [ 5:0] shift,   // at least 1
    output logic signed [31:0] out
);
  // Double rounding looks at the value's sign, which is the product's: where the multiplier is 0 both signs give 0.
  wire signed [63:0] half = 64'sd1 <<< (shift - 6'd1);
  wire signed [63:0] away = product[63] ? -(64'sd1 <<< 30) : 64'sd1 <<< 30;
  wire signed [63:0] rounding = (DOUBLE && shift > 6'd31) ? half + away : half;
  wire signed [63:0] shifted = (product + rounding) >>> shift;
  npu_narrow #(.IN_BITS(64), .OUT_BITS(32), .MODE(SATURATE)) to_int32 (.in(shifted), .out, .overflow());
endmodule
